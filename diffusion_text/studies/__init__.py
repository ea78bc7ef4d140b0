"""What a command does beyond one run: compare, translate, control, scaling, fault injection,
benchmarks, reports.
"""
