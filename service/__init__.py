"""The front door: Flask behind gunicorn. It never imports torch or numpy."""

from service.application import create_app

__all__ = ["create_app"]
