"""What a spec says without torch: closed forms, one subject a file, and in `memory` a simulation of autograd."""
