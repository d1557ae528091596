"""What is fast, and beside what: each script measures one thing and runs by itself.

make bench                        all of them
make bench ARGS="serving"         some of them
"""
