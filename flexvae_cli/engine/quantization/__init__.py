"""Weights of a trained model in few bits: how they are kept, what each layer stands, and which bits to choose."""
