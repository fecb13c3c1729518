"""Images that lie in public git repositories → labelled images and their index, by repository, commit and rule; Ray-free."""

from ray_app.datajobs.repositories.image_rules import RepositoriesConfig

__all__ = ["RepositoriesConfig"]
