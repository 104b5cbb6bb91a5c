"""Input and output shared by the tools: arguments, and HTML pages."""
