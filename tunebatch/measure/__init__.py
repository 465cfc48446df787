"""From what a run left behind to numbers, verdicts and files. Imports neither torch nor pandas."""
