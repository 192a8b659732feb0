"""Measurements of nxm_hf: what its masks, pruning and training cost, and what its recipes lose."""
