module torchmodel.dev/cluster-pause

go 1.26
