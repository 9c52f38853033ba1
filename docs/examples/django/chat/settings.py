"""Settings: Django without a database, and where the realtime server is."""

import os

from django.core.management.utils import get_random_secret_key

# Without a key of their own, logins end with the process.
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY") or get_random_secret_key()
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "chat.urls"
INSTALLED_APPS = ["django.contrib.sessions", "chat"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"

ANYCABLE_SECRET = os.environ["ANYCABLE_SECRET"]
CABLE_URL = os.environ.get("CABLE_URL", "ws://localhost:8080/cable")  # for browsers
PUBLISH_URL = os.environ.get("PUBLISH_URL", "http://localhost:8080/_broadcast")  # for this process
