"""The mesh: identity, discovery, peers and their liveness."""
