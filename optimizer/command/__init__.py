"""The command line: files in, files and exit codes out.

Open `main` for the commands, and `policy_file` for a policy as TOML.
"""
