from cm import console, link

link.start(console)
