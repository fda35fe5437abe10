"""`python -m flexvae_cli`."""

from flexvae_cli.main import run

if __name__ == "__main__":
    run()
