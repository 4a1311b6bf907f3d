from files import errors

errors.begin()
