"""The companion of the book: studies, figures, baselines, benchmarks, the claims ledger and the site.

It stands beside the notebooks and is imported from a checkout, never installed.
"""
