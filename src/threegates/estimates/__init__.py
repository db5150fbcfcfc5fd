"""What estimates are made of: statistics, intervals, rows of tables, numbers of the paper."""
