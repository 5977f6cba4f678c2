"""``python -m service``: listen until told to stop."""

from service.server import serve

if __name__ == "__main__":
    serve()
