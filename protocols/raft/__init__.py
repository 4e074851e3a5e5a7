"""Raft (Ongaro & Ousterhout 2014; Ongaro's thesis), many groups in one node."""
