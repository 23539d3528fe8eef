"""A model bigger than one machine: memory that nodes lend each other, for llama.cpp's RPC backend.

lender    what this machine lends, and to whom
server    the child process in which llama.cpp serves one borrower
borrower  who lends, how a model is spread over them, and the loans that were taken
loan      one lender's memory as a port of loopback, carried over the mesh

llama.cpp's RPC has neither encryption nor authentication, and its server trusts what it is told. So it never listens:
not on this machine's network, and on loopback only until its one connection is made. The bytes go over the mesh's mTLS.
"""
