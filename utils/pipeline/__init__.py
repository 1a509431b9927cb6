"""Run a profile's notebooks with run_all.sh, then make the leaderboard and the report."""
