"""Everything that only hands have: names of bones, bent wrists, sides, and what is likely on a hand's X-ray image."""
