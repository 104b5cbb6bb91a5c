"""What tools have in common on their way in and out: arguments, and pages."""
