module workspace

go 1.23
