"""The API and the page as a FastAPI application. Knows no Ray: what scores an image is handed in."""
