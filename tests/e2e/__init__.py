"""Real servers and real clients: the official ones, a browser, and many test clients behind a cutting proxy."""
