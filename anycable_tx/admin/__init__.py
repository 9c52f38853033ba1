"""The admin page: what the server does now, for whoever has the admin key."""
