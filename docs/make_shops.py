"""Writes the tables of docs/tutorial.md: the sales of 40 shops, and the prices of what comes.

    python docs/make_shops.py        # shops.csv and future.csv, in this folder

Two years by day: sales and visits, which are known up to the last day; price and holiday, which are
known in advance and stand in future.csv for 28 days more. Prices move sales by their square, and
holidays close shops for half of the day.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

SHOPS, DAYS, AHEAD = 40, 730, 28
HOLIDAYS = ("01-01", "04-18", "05-01", "08-15", "11-01", "12-25", "12-26")


def shop(number: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return one shop's days, those to come included."""
    days = pd.date_range("2024-01-01", periods=DAYS + AHEAD, freq="D")
    holiday = days.strftime("%m-%d").isin(HOLIDAYS).astype(float)
    weeks = len(days) // 7 + 1
    price = rng.uniform(8, 12) * np.repeat(rng.choice([1.0, 0.8, 1.1], weeks), 7)[: len(days)]
    weekday = rng.uniform(0.7, 1.4, 7)[days.day_of_week]
    season = 1 + 0.2 * np.sin((days.day_of_year - 80) * 2 * np.pi / 365)
    crowd = np.exp(0.2 * np.convolve(rng.normal(size=len(days) + 9), np.ones(10) / 3, "valid"))
    visits = rng.uniform(50, 2000) * weekday * season * crowd * (1 - 0.5 * holiday)
    noise = rng.normal(1, 0.05, len(days))
    sales = 0.3 * visits * (price.mean() / price) ** 2 * noise
    numbers = {"sales": sales, "visits": visits, "price": price, "holiday": holiday}
    table = pd.DataFrame({"day": days, **{k: np.round(v, 2) for k, v in numbers.items()}})
    return table.assign(shop=f"shop-{number:02}")


def main() -> None:
    rng = np.random.default_rng(7)
    table = pd.concat([shop(number, rng) for number in range(1, SHOPS + 1)])
    is_future = table.groupby("shop").cumcount() >= DAYS
    columns = ["shop", "day", "sales", "visits", "price", "holiday"]
    table.loc[~is_future, columns].to_csv("shops.csv", index=False)
    table.loc[is_future, ["shop", "day", "price", "holiday"]].to_csv("future.csv", index=False)


if __name__ == "__main__":
    main()
