def log_model(*a):
    return None
