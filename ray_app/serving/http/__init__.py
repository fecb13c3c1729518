"""Build the API and the page as a FastAPI application (`ray_app.serving.http.app.create_app`)."""
