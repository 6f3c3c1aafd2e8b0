PURGED = True
