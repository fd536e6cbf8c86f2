"""From one call of a layer to kernel calls: packed weights, the plan that splits the work, workspaces."""
