"""The README's pictures, made by the project itself."""
