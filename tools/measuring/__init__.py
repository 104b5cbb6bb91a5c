"""What every benchmark needs: fresh processes, times that can be compared, and a table with its origin."""
