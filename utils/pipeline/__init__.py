"""What run_all.sh does: a profile's notebooks as one run, its leaderboard and report."""
