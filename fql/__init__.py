"""Flow Q-Learning (Park, Li, Levine, ICML 2025): the algorithm."""
