"""The presentation of a run: its pictures, its tables, and the numbers behind them."""
