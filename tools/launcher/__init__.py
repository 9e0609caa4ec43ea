"""How ./holdfast gets its environment.

    environment   where environments live, which one fits, the variables a process gets
    installing    which Python and which installer to take, and making an environment with them

Standard library only, and no syntax newer than Python 3.6, so that an old Python gets as far as a clear message. What a
start needs when the environment is there already stands in ``environment``; the rest is imported when it is needed.
"""
