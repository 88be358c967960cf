"""Pure types and protocols; imports nothing from the rest of the package."""
