"""The sweep's own process with stand-in trainings: reads an order, starts so many workers,
and ends with the status of a command.
"""

from __future__ import annotations

import sys
from pathlib import Path

from memlab.errors import UserError
from memlab.sweeping import driver
from memlab.sweeping.ending import Asked, Interrupted
from memlab.sweeping.order import Order
from memlab.sweeping.pool import Pool
from memlab.sweeping.store import Store


def main() -> int:
    order = Order.model_validate_json(sys.stdin.read())
    workers = int(sys.argv[1])
    store = Store(order.storage, order.study)
    try:
        arms = store.patiently(lambda: order.arms(store))
        with Asked() as asked:
            pool = Pool(Path(order.run_dir), [[] for _ in range(workers)], asked)
            pool.start()
            pool.run(order, store, arms)
        driver._check_done(order, store, arms)
    except Interrupted:
        return 128 + asked.number
    except UserError as error:
        print(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
