"""What a user builds: layers shaped like torch.nn's."""
