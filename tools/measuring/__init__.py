"""What every benchmark needs: fresh processes, comparable times, and a table with its provenance."""
