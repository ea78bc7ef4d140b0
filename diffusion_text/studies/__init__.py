"""What a command does beyond one run: compare, tasks, control, scaling, fault injection,
benchmarks, reports.
"""
