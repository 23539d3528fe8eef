"""Generated from proto/node/v1 by `make proto`; do not edit."""
