"""What a program holds: clients, locks, and the errors they raise.

The law: all decisions stand in the pure core (`core*.py`), which is given the time and returns
frames; the asynchronous client puts those on sockets, the synchronous client runs the
asynchronous one on a thread. Nothing here imports a node.
"""
