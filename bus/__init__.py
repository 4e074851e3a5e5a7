"""Bytes between processes: frame header, codec, and ZeroMQ sockets on an asyncio loop.

The law: the bus imports nothing else of coterie. The codec is handed the message types; the
sockets carry bytes and know no protocol. Whatever arrives from outside is dropped and counted
here or raised as `Malformed`; nothing of it reaches the loop as another exception. A frame may be
lost, and a lost frame is never an error of the bus: those above retry.
"""
