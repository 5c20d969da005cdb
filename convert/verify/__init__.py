"""Proof that a converted checkpoint is the published one."""
