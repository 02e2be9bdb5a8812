"""Draws images/online-cube.png from online-cube.csv: python docs/draw_online.py."""

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt

DOCS = Path(__file__).parent
TITLES = {
    'fql-one-step': 'FQL, one step, online from 20,000',
    'fql-one-step-offline-only': 'FQL, one step, offline only',
    'fql': 'FQL, five steps, online from 20,000',
    'fql-ucb': 'the same with --exploration ucb',
    'fql-offline-only': 'FQL, five steps, offline only',
    'rlpd': 'RLPD, online from 0',
}

curves = defaultdict(dict)
with (DOCS / 'online-cube.csv').open() as file:
    for row in csv.DictReader(file):
        seeds = curves[row['run']].setdefault(int(row['update']), [])
        seeds.append(100 * float(row['success']))

figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
for run, title in TITLES.items():
    updates = sorted(curves[run])
    values = [curves[run][update] for update in updates]
    (line,) = axes.plot(updates, [sum(seeds) / len(seeds) for seeds in values], label=title)
    for update, seeds in zip(updates, values, strict=True):
        axes.scatter([update] * len(seeds), seeds, s=12, color=line.get_color(), alpha=0.5)
axes.axvline(20_000, color='gray', linewidth=0.8, linestyle=':')
axes.set(xlabel='update', ylabel='success, % of 50 episodes', ylim=(0, 100))
axes.grid(alpha=0.3)
axes.legend(fontsize='small')
figure.savefig(DOCS / 'images' / 'online-cube.png', dpi=110)
