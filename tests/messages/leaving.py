"""A program that archives or erases, and is killed: see `test_archive_crashes`.

python -m tests.messages.leaving archive URL FOLDER BEFORE
python -m tests.messages.leaving erase URL CUSTOMER
"""

import sys

from ledgerbeam.messages.archive import leave
from ledgerbeam.messages.archive.erase import erase
from ledgerbeam.messages.store.database import MessageDatabase

if __name__ == "__main__":
    verb, url, *given = sys.argv[1:]
    leave.ROWS = 5
    with MessageDatabase.open(url) as database:
        if verb == "archive":
            print(sum(batch.messages for batch in leave.archive(database, int(given[1]), given[0])))
        else:
            print(erase(database, given[0], who="ann@laptop", why="asked for it").archived)
