"""Operations on runs: submit, wait, cancel, retry, resolve, expire, reconcile."""
