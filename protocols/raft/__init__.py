"""Raft (Ongaro & Ousterhout 2014; Ongaro's thesis), many groups in one node.

With PreVote, CheckQuorum, stickiness, pipelined appends, and reads confirmed by rounds. The door
is `plugin.Raft`.
"""
