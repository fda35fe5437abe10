"""What stands between encoder and decoder: a module from the encoder's output to `Encoded`."""
