"""Five hosts of their own on one switch, everything that can go wrong between them, and clients that go on asking."""
