"""What a run shows of itself: pictures, and the numbers behind them."""
